"""Files of pairs: every form is read, every bad row is named with its line and reason."""

from __future__ import annotations

import json

import pytest

from interp.tasks import load_task, task_from_file
from interp.terms import TaskError, TooLargeError, UsageError
from tests.tasks.readers import digit_reader, gpt2_reader, word_reader

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
ROW = {"clean": CLEAN, "corrupt": CORRUPT, "right": " Mary", "wrong": " John"}


@pytest.fixture(scope="module")
def model():
    return word_reader()


def write(tmp_path, text, name="pairs.jsonl"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(*rows):
    return "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n"


def test_json_lines_csv_and_a_json_array_give_the_same_task(tmp_path, model):
    a = task_from_file(write(tmp_path, lines(ROW)), model)
    b = task_from_file(write(tmp_path, json.dumps([ROW]), "a.json"), model)
    table = f'clean,corrupt,right,wrong\n"{CLEAN}","{CORRUPT}", Mary, John\n'
    c = task_from_file(write(tmp_path, table, "a.csv"), model)
    assert a.hash() == b.hash() == c.hash()
    assert a.bos and a.clean_text[0][1] == "When" and a.answer_text[a.right[0][0]] == "Mary"


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path, model):
    table = f'\ufeffclean,corrupt,right,wrong\r\n"{CLEAN}","{CORRUPT}",Mary,John\r\n\r\n'
    assert len(task_from_file(write(tmp_path, table, "a.csv"), model)) == 1


def test_a_files_ref_makes_the_same_task_again(tmp_path, model):
    row = {**ROW, "other": "When Mary and John went to the store, Anna gave a drink to"}
    path = write(tmp_path, lines(row, "broken", row))
    task = load_task(str(path), model, corrupt="other", skip_bad=True, bos=False)
    assert load_task(task.ref, model).hash() == task.hash()
    assert "1 of 3 rows left out" in task.name and len(task) == 2 and not task.bos
    assert task.corrupt_text[0][9] == "Anna"


def test_every_bad_row_is_named_with_its_line_and_reason(tmp_path, model):
    rows = [
        ROW,
        "",
        "{oops",
        {**ROW, "clean": "  "},
        {**ROW, "corrupt": CLEAN},
        {**ROW, "clean": CLEAN + " the"},
        {**ROW, "right": ""},
        {**ROW, "right": " Zork"},
        {**ROW, "right": "Mary John"},
        {**ROW, "right": " John"},
        [1],
        {**ROW, "slots": [3]},
        {**ROW, "slots": {"IO": 99}},
        {**ROW, "span_map": 3},
        {**ROW, "clean": 3},
        {**ROW, "right": {"a": 1}},
        {**ROW, "clean": CLEAN + " the" * 70},
    ]
    path = write(tmp_path, lines(*rows))
    with pytest.raises(TaskError) as caught:
        task_from_file(path, model)
    reasons = dict(caught.value.rows)
    said = {
        3: "no JSON",
        4: "empty",
        5: "same tokens",
        6: "equally long",
        7: "no right answer",
        8: "lacks 'Zork'",
        9: "2 tokens",
        10: "both the right and the wrong",
        11: "no JSON object",
        12: "slots are no object",
        13: "outside the prompt",
        14: "span_map",
        15: "neither a text",
        16: "neither text nor token id",
        17: "",
    }
    assert sorted(reasons) == sorted(said)
    for line, words in said.items():
        assert words in reasons[line], (line, reasons[line])
    assert "15 of 16 rows" in str(caught.value) and "skip_bad" in str(caught.value)
    assert len(task_from_file(path, model, skip_bad=True)) == 1


def test_a_bad_row_of_a_table_is_named_by_the_line_it_ends_on(tmp_path, model):
    good = f'"{CLEAN}","{CORRUPT}",Mary,John'
    rows = ["clean,corrupt,right,wrong", good, f"{good},more", f'"{CLEAN}\n","{CORRUPT}",Zork,John']
    with pytest.raises(TaskError) as caught:
        task_from_file(write(tmp_path, "\n".join(rows) + "\n", "a.csv"), model)
    assert [n for n, _ in caught.value.rows] == [3, 5]


def test_a_file_of_bad_rows_only_cannot_be_skipped_to_nothing(tmp_path, model):
    path = write(tmp_path, lines({**ROW, "right": " Zork"}))
    with pytest.raises(TaskError, match="line 1: .*lacks 'Zork'"):
        task_from_file(path, model, skip_bad=True)


def test_slots_spans_and_span_maps_are_kept(tmp_path, model):
    rows = [
        {**ROW, "slots": {"IO": 2, "names": [2, 4]}, "template": "one"},
        {**ROW, "slots": {"IO": 2}, "template": "two"},
    ]
    task = task_from_file(write(tmp_path, lines(*rows)), model)
    assert task.slots == {"IO": (2, 2)} and task.template == ("one", "two")
    uneven = {**ROW, "clean": "Then " + CLEAN, "span_map": [[[2, 17], [1, 16]]]}
    task = task_from_file(write(tmp_path, lines(uneven)), model)
    assert task.span_map == ((((2, 17), (1, 16)),),)
    span = {**ROW, "right": "Mary and John", "wrong": "John and Mary"}
    task = task_from_file(write(tmp_path, lines(span)), model, answer_form="span")
    assert task.answer_form == "span" and len(task.right[0]) == 3


def test_token_ids_serve_a_model_without_a_tokenizer(tmp_path):
    model = digit_reader()
    row = {"clean": [2, 7, 1, 5], "corrupt": [2, 7, 1, 1], "right": 2, "wrong": [8]}
    task = task_from_file(write(tmp_path, lines(row)), model)
    table = "clean,corrupt,right,wrong\n2 7 1 5,2 7 1 1,2,8\n"
    assert task_from_file(write(tmp_path, table, "a.csv"), model).hash() == task.hash()
    bad = [
        {**row, "right": 10},
        {**row, "clean": "Mary"},
        {**row, "clean": [1] * 7, "corrupt": [2] * 7},
    ]
    with pytest.raises(TaskError) as caught:
        task_from_file(write(tmp_path, lines(*bad)), model)
    reasons = [why for _, why in caught.value.rows]
    assert "outside this model's 10" in reasons[0] and "no tokenizer" in reasons[1]
    assert "context holds 6" in reasons[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"clean": "a\0"}', "NUL"),
        (b"clean,corrupt\n", "no row"),
        (b"clean,right\na,b\n", "none for corrupt"),
        (b"[1, 2", "no JSON"),
        (b"[]", "no row"),
        (b"clean,corrupt,right\na,b\n", "2 cells where the header has 3"),
        (b'clean,corrupt,right\n"a,b,c\n', "no CSV"),
        (b"[" * 5000, "no JSON"),
    ],
)
def test_a_file_that_is_no_table_gets_a_sentence(tmp_path, model, content, said):
    with pytest.raises(TaskError, match=said):
        task_from_file(write(tmp_path, content), model)


def test_missing_folders_and_near_misses_get_a_sentence(tmp_path, model):
    write(tmp_path, lines(ROW))
    with pytest.raises(TaskError, match="Did you mean 'pairs.jsonl'"):
        task_from_file(tmp_path / "pair.jsonl", model)
    with pytest.raises(TaskError, match="is not a file"):
        task_from_file(tmp_path, model)
    with pytest.raises(UsageError, match="'corrupt'"):
        task_from_file(tmp_path / "pairs.jsonl", model, corrupt="corupt")
    with pytest.raises(UsageError, match="'jsonl'"):
        task_from_file(tmp_path / "pairs.jsonl", model, form="json")


def test_limits_of_size_and_lines_hold(tmp_path, model):
    with pytest.raises(TooLargeError, match="wanted at most 10 MB"):
        task_from_file(write(tmp_path, b"x" * 10_000_001), model)
    with pytest.raises(TooLargeError, match="wanted at most 100000"):
        task_from_file(write(tmp_path, b"a\n" * 100_002), model)


def test_an_unknown_option_of_a_file_is_told(tmp_path, model):
    path = write(tmp_path, lines(ROW))
    with pytest.raises(UsageError, match="skip_bad"):
        load_task(f"{path}::skip_bd=true", model)


def test_the_published_agreement_tables_are_read_whole(test_data):
    model = gpt2_reader(test_data)
    task = task_from_file(test_data / "prompts_sva" / "within_rc_test.json", model, n=200)
    assert len(task) == 200 and task.clean_text[0][-1] == " chefs"
    assert task.answer_text[task.right[0][0]] == " have"
    with pytest.raises(TaskError, match="line .*tokens"):
        task_from_file(test_data / "prompts_sva" / "nounpp_test.json", model)


def test_the_greater_than_table_counts_its_years_out(test_data):
    model = gpt2_reader(test_data)
    task = task_from_file(test_data / "prompts_eapig" / "greater_than_data.csv", model)
    assert len(task) == 1000
    assert len(task.right[0]) == 99 - 52 and len(task.wrong[0]) == 53
    assert {task.answer_text[t] for t in task.right[0]} == {f"{y}" for y in range(53, 100)}


def test_ids_of_another_vocabulary_refuse_the_whole_table(test_data):
    model = gpt2_reader(test_data)
    path = test_data / "prompts_eapig" / "ioi_llama.csv"
    with pytest.raises(TaskError, match="another model's"):
        task_from_file(path, model, skip_bad=True)


def test_a_column_name_that_no_ref_can_hold_leaves_the_ref_empty(tmp_path, model):
    path = write(tmp_path, lines({**ROW, "a,b": CORRUPT}))
    assert task_from_file(path, model, corrupt="a,b").ref is None
