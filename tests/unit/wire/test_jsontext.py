import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.wire import jsontext

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_agrees_with_the_standard_library(value: object) -> None:
    text = jsontext.dumps(value)
    assert json.loads(text) == value
    assert jsontext.loads(text) == value
    assert jsontext.loads(json.dumps(value, indent=2).encode()) == value


@pytest.mark.parametrize(
    "text", ["", " ", "{", "[1,]", "nan", "NaN", "Infinity", "1 2", "[" * 100_000, '{"a" 1}', '"\n"']
)
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        jsontext.loads(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        jsontext.dumps(value)


def test_bad_text_is_explained_where_json_was_never_imported() -> None:
    code = (
        "import sys\n"
        "from sampan.wire import jsontext\n"
        "assert 'json' not in sys.modules and 're' not in sys.modules, sorted(sys.modules)\n"
        "try: jsontext.loads('{')\n"
        "except ValueError as error: print(error)\n"
    )
    path = next(entry for entry in sys.path if entry.endswith("src"))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({path!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "property name" in done.stdout
