"""A conflist rendered from a template when the kubelet tells the node's pod addresses.

containerd's ``conf_template``: a Go template of which these actions are known: ``{{.PodCIDR}}``, and the ranges
``{{range $i, $range := .PodCIDRRanges}}...{{end}}`` and ``{{range $i, $route := .Routes}}...{{end}}`` with
``{{$range}}`` (or ``{{.}}``) inside and ``{{if $i}}, {{end}}`` for a comma between.
"""

import os
import re

import msgspec

from sampan.errors import InvalidInput

_RANGE = re.compile(
    r"\{\{-?\s*range\s+(?:\$(\w+)\s*,\s*\$(\w+)\s*:=\s*)?\.(PodCIDRRanges|Routes)\s*-?\}\}"
    r"(.*?)\{\{-?\s*end\s*-?\}\}(?!\s*\{\{-?\s*\$)",
    re.DOTALL,
)
_IF = re.compile(r"\{\{-?\s*if\s+\$(\w+)\s*-?\}\}(.*?)\{\{-?\s*end\s*-?\}\}", re.DOTALL)
_HELD = "\0{}\0"


def render(template: str, subnets: list[str]) -> str:
    """Fill a template.

    Raises:
        InvalidInput: It has an action that is not known, or the outcome is no JSON.
    """
    # The inner {{if}}s go first, so that what ends a range is a range's own {{end}}.
    inner: list[str] = []

    def hold(match: re.Match[str]) -> str:
        inner.append(match.group(2))
        return _HELD.format(len(inner) - 1)

    text = _IF.sub(hold, template)
    routes = ["::/0" if ":" in subnet else "0.0.0.0/0" for subnet in subnets]

    def repeat(match: re.Match[str]) -> str:
        values = subnets if match.group(3) == "PodCIDRRanges" else routes
        name = re.escape(match.group(2) or "")
        parts = []
        for i, value in enumerate(values):
            part = re.sub(
                r"\{\{\s*(?:\$" + name + r"|\.)\s*\}\}" if name else r"\{\{\s*\.\s*\}\}", value, match.group(4)
            )
            for n, held in enumerate(inner):
                part = part.replace(_HELD.format(n), held if i else "")
            parts.append(part)
        return "".join(parts)

    text = _RANGE.sub(repeat, text)
    text = re.sub(r"\{\{\s*\.PodCIDR\s*\}\}", subnets[0], text)
    if "{{" in text or "\0" in text:
        raise InvalidInput(f"template action near {text[max(0, text.find('{{')) :][:40]!r} is not known")
    try:
        msgspec.json.decode(text.encode())
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the template renders to something that is not JSON: {error}") from None
    return text


def render_file(template: str, conf_dir: str, subnets: list[str]) -> str:
    """Render the file ``template`` into the directory; nothing happens when a configuration is there already.

    Returns:
        The path written, or the empty string.
    """
    from sampan.network.config import SUFFIXES
    from sampan.network.conflist import parse

    target = os.path.join(conf_dir, "10-sampan-net.conflist")
    os.makedirs(conf_dir, mode=0o755, exist_ok=True)
    others = [name for name in os.listdir(conf_dir) if name.endswith(SUFFIXES)]
    if [name for name in others if name != os.path.basename(target)]:
        return ""
    try:
        with open(template, encoding="utf-8") as file:
            text = render(file.read(), subnets)
    except OSError as error:
        raise InvalidInput(f"{template}: {error.strerror}") from None
    except InvalidInput as error:
        raise InvalidInput(f"{template}: {error.message}") from None
    parse(msgspec.json.decode(text.encode()), target)
    staged = f"{target}.tmp"
    with open(staged, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(staged, target)
    return target
