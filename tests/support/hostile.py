"""Values and texts that no honest file has, and the promise that each is answered at once by one of our errors."""

import json
import time
from contextlib import contextmanager
from copy import deepcopy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from finetune.errors import FinetuneError

THOROUGHLY = settings(
    max_examples=2000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
_NUMBERS = [0, -1, 1, 2, 7, 64, 3000, 10**6, 10**9, 2**31, 2**63, 10**30, 1.5, -0.5, 1e300, 1e-300]
_TEXTS = ["", "x", "0", "true", "null", "\x00", "\x1b[31m", "\u202e", "\ud800", "a" * 5000, "../x", "(a|a)*b", "\n"]
SCALARS = st.one_of(
    st.sampled_from(_NUMBERS), st.sampled_from(_TEXTS), st.booleans(), st.none(), st.integers(), st.text(max_size=20)
)
VALUES = st.one_of(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from([[1] * 1100, [[]] * 100, ["x"] * 100, [float("nan")], float("inf")]),
)


@contextmanager
def answered_at_once():
    start = time.thread_time()  # of this program, however busy the machine is
    try:
        yield
    except FinetuneError as error:
        message = str(error)
        assert message
        assert len(message) < 500_000
        assert not {c for c in message if ord(c) < 32} - {"\n", "\t"}
        message.encode()
    assert time.thread_time() - start < 5


def paths_in(document, path=()):
    """Of every value in a document of dicts and lists."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from paths_in(value, (*path, key))


@st.composite
def mutations(draw, document):
    """A document of dicts and lists in which up to three values are replaced, removed, added or doubled."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        if not (paths := list(paths_in(document))):
            break
        *above, key = draw(st.sampled_from(paths))
        parent = document
        for step in above:
            parent = parent[step]
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "double"]))
        if change == "replace":
            parent[key] = deepcopy(draw(VALUES))
        elif change == "remove":
            del parent[key]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = deepcopy(draw(VALUES) if change == "add" else parent[key])
        else:
            parent.insert(key, deepcopy(parent[key]))
    return document


@st.composite
def garbled(draw, text, snippets):
    """A text or bytes in which pieces are inserted, removed or repeated."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 40)))
        change = draw(st.sampled_from(["insert", "insert", "remove", "repeat", "cut"]))
        if change == "insert":
            text = text[:start] + draw(snippets) + text[start:]
        elif change == "remove":
            text = text[:start] + text[stop:]
        elif change == "repeat":
            text = text[:stop] + text[start:stop] * draw(st.sampled_from([1, 5, 300])) + text[stop:]
        else:
            text = text[:start]
    return text
