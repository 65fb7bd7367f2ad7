"""Which clips a run takes for what."""

from audiocls.data.splits import fingerprint


def test_a_fingerprint_names_a_division() -> None:
    base = fingerprint(["a", "b"], ["c"])
    assert fingerprint(["a", "b"], ["c"]) == base
    others = [
        fingerprint(["a"], ["b", "c"]),
        fingerprint(["b", "a"], ["c"]),
        fingerprint(["a", "b"], [], ["c"]),
        fingerprint(["a", "b"], ["c"], ["d"]),
        fingerprint(["ab"], ["c"]),
        fingerprint(["a", "b", "c"], []),
    ]
    assert len({base, *others}) == 1 + len(others)
    assert fingerprint(["caf\udce9.wav"], ["b"]) != fingerprint(["cafe.wav"], ["b"])  # a name beyond Unicode
