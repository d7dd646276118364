"""Image references: short forms, parts, errors that name the part."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sampan.errors import InvalidInput
from sampan.image.reference import Reference

DIGEST = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
        ("nginx:1.25", "docker.io/library/nginx:1.25", "nginx:1.25"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
        ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
        ("quay.io/x@" + DIGEST, "quay.io/x@" + DIGEST, "quay.io/x@" + DIGEST),
        ("nginx:1@" + DIGEST, "docker.io/library/nginx:1@" + DIGEST, "nginx:1@" + DIGEST),
        ("Upper/app", "Upper/app:latest", "Upper/app:latest"),
        ("a__b/c-d.e", "docker.io/a__b/c-d.e:latest", "a__b/c-d.e:latest"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
    ],
)
def test_forms(text: str, canonical: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == canonical
    assert reference.familiar == familiar


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "image"),
        ("Nginx", "repository"),
        ("nginx:", "tag"),
        ("nginx:-x", "tag"),
        ("nginx@sha256:12", "digest"),
        ("nginx@md5:" + "0" * 32, "digest"),
        ("a//b", "repository"),
        ("/a", "repository"),
        ("a/", "repository"),
        ("-x.io/a", "domain"),
        ("x.io:port/a", "domain"),
        ("../etc", "domain"),
        ("x.io/" + "a" * 256, "repository"),
        ("a" * 64, "image id"),
        ("nginx\n", "repository"),
        ("nginx:1\n", "tag"),
        ("ngi nx", "repository"),
        ("a___b", "repository"),
    ],
)
def test_wrong_part_is_named(text: str, part: str) -> None:
    with pytest.raises(InvalidInput, match=part) as caught:
        Reference.parse(text)
    assert "\n" not in str(caught.value)


def test_default_tag_may_be_left_out() -> None:
    assert str(Reference.parse("nginx", default_tag="")) == "docker.io/library/nginx"


def test_derived_references() -> None:
    reference = Reference.parse("nginx:1")
    assert str(reference.with_digest(DIGEST)) == "docker.io/library/nginx@" + DIGEST
    assert str(reference.with_tag("2")) == "docker.io/library/nginx:2"
    assert Reference.parse("nginx:1@" + DIGEST).target == DIGEST
    with pytest.raises(InvalidInput):
        reference.with_tag("a:b")


component = st.from_regex(r"\A[a-z0-9]{1,8}(?:[._-][a-z0-9]{1,5}){0,2}\Z")
domain = st.sampled_from(["", "localhost/", "localhost:5000/", "quay.io/", "10.0.0.1:5000/", "docker.io/"])
tag = st.one_of(st.just(""), st.from_regex(r"\A:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}\Z"))
digest = st.one_of(st.just(""), st.just("@" + DIGEST))


@given(domain, st.lists(component, min_size=1, max_size=3), tag, digest)
def test_every_written_form_survives_both_spellings(d: str, path: list[str], t: str, g: str) -> None:
    assume(d or len(path) == 1 or not {".", ":"} & set(path[0]))  # a first part with a dot is a host
    text = d + "/".join(path) + t + g
    reference = Reference.parse(text)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference


@given(st.text(max_size=80))
def test_any_text_parses_or_names_a_part(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidInput as error:
        assert error.field  # noqa: PT017 - any text is allowed to parse
    else:
        assert Reference.parse(str(reference)) == reference
