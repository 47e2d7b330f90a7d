"""The benchmark compares answers before it compares times."""

from __future__ import annotations

import json

from benchmarks import interpreter


def test_both_ways_agree_and_the_table_says_so(capsys):
    assert interpreter.main(["--side", "12", "--rounds", "1", "--rows", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agrees"] and found["vectors"][0]["error"] < 1e-9
    assert found["vectors"][0]["products"] > 10
    text = interpreter.told(found)
    assert "dense ÷ Lanczos" in text and "differ" not in text
    found["vectors"][0]["error"] = 1e-3
    assert "the answers differ" in interpreter.told(found)
