"""Columns of samples, and conditions on them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trak_lightning.decisions.columns import Columns, Condition, all_hold, require_column, text_of, value_of
from trak_lightning.errors import DataError, SettingsError

VECTOR = torch.tensor([9.0, 0.25])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("web", "web"),
        (3, "3"),
        (np.float32(0.1), "0.1"),
        (torch.tensor(3), "3"),
        (torch.tensor([0.1]), "0.1"),
        (torch.tensor(2.0, dtype=torch.bfloat16), "2.0"),
        (torch.tensor(True), "True"),
        (np.array("web"), "web"),
    ],
)
def test_a_column_holds_one_value_as_text(value, text):
    assert text_of(value, "source") == text


@pytest.mark.parametrize(
    ("sample", "column", "text"),
    [
        ({"numeric": VECTOR, "y": 3}, "numeric[1]", "0.25"),
        ({"numeric[1]": 7, "numeric": VECTOR}, "numeric[1]", "7"),
        (({"numeric": VECTOR}, 3), "numeric[0]", "9.0"),
        (({"numeric": VECTOR}, 3), "y", "3"),
        ((VECTOR, torch.tensor([2.5])), "x[1]", "0.25"),
        ((VECTOR, torch.tensor([2.5])), "y", "2.5"),
        (((VECTOR, torch.tensor([4.0, 5.0])), 3), "x1[0]", "4.0"),
        ((VECTOR, torch.tensor([4.0, 5.0]), 3), "x1[1]", "5.0"),
        ((VECTOR, torch.tensor([4.0, 5.0]), 3), "x2", "3"),
        (("a text", 3), "x", "a text"),
        ({"image": torch.tensor([[1, 2], [3, 4]])}, "image[1][0]", "3"),
        (SimpleNamespace(size=torch.tensor(4), _hidden=1), "size", "4"),
        ({"source": "web"}, "book", "None"),
    ],
)
def test_columns_go_by_the_names_that_a_report_shows(sample, column, text):
    assert value_of(sample, column) == text


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 0), lambda x: {"x": x, "y": 0}])
def test_a_feature_that_the_datamodule_names_is_a_column(wrap):
    for value, text in ((1.0, "1"), (0.25, "0.25")):
        assert value_of(wrap(torch.tensor([9.0, value])), "sex", ["age", "sex"]) == text


def test_a_column_that_is_not_there_or_is_more_than_one_value_is_named_with_what_can_be_written():
    with pytest.raises(DataError, match=r"no column 'age'; their columns are numeric\[0\] … numeric\[1\], y$"):
        require_column({"numeric": VECTOR, "y": 3}, "age", (), "samples")
    with pytest.raises(DataError, match=r"no column 'old'; their columns are age, sex, x\[0\] … x\[1\], y$"):
        require_column((VECTOR, 3), "old", ["age", "sex"], "samples")
    with pytest.raises(DataError, match=r"holds 2 values per sample, of shape \(2,\); one is needed, such as x\[0\]"):
        value_of((VECTOR, 3), "x")
    with pytest.raises(DataError, match=r"x has no entry \[2\]: its shape is \(2,\)"):
        value_of((VECTOR, 3), "x[2]")
    require_column((VECTOR, 3), "x[1]", (), "samples")
    require_column((VECTOR, 3), "sex", ["age", "sex"], "samples")


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("age>60", [60.5, 70]),
        ("age >= 60.5", [60.5, 70]),
        ("age<=9", [9, -1]),
        ("age<9", [-1]),
        ("age=70", [70]),
        ("age==7e1", [70]),
        ("age!=9", [60.5, 70, -1]),
    ],
)
def test_numbers_are_compared_as_numbers(condition, expected):
    ages = [9.0, 60.5, 70.0, -1.0]
    found = Condition.parse(condition)
    assert found.column == "age"
    assert np.array(ages)[found.mask(np.array(list(map(str, ages))))].tolist() == expected


@pytest.mark.parametrize(("condition", "expected"), [("s=web", [0, 2]), ("s!=web", [1]), ("s=a=b>c", [1])])
def test_text_is_compared_as_text(condition, expected):
    mask = Condition.parse(condition).mask(np.array(["web", "a=b>c", "web"]))
    assert np.flatnonzero(mask).tolist() == expected


@pytest.mark.parametrize("text", ["age", ">60", "=web", ""])
def test_what_is_no_condition_is_refused_with_what_can_be_written(text):
    with pytest.raises(
        SettingsError,
        match=r"in quotes: 'source=web', 'numeric\[0\]<=1.5'; and joins several: 'age>60 and sex=female', got",
    ):
        Condition.parse(text)


@pytest.mark.parametrize("joint", [" & ", "&&", " or ", " OR ", ", ", ",", " | ", " || "])
@pytest.mark.parametrize("first", ["age>60", "age!=60", "sex='male'"])
def test_conditions_that_are_joined_by_anything_but_and_are_refused_with_what_joins_them(first, joint):
    with pytest.raises(
        SettingsError, match=rf"{joint.strip()!r} joins no conditions; join them with and, .* no or".replace("|", r"\|")
    ):
        Condition.parse_all(f"{first}{joint}group='obese'")
    quoted = Condition.parse_all(f'name="a{joint}b=c" and age>3')
    assert [each.value for each in quoted] == [f"a{joint}b=c", "3"]
    assert Condition.parse(f"name=a{joint}b").value == f"a{joint}b"


@pytest.mark.parametrize(
    ("condition", "values", "message"),
    [
        ("age>old", ["1"], "> compares numbers, and 'old' is none; write = or !="),
        ("source<3", ["1", "web"], "< compares numbers, and source holds 'web'; write = or !="),
        ("source=tv", ["book", "web", "web"], "has source = 'tv'; the values of source are 'book', 'web'$"),
        (
            "age>60",
            [str(each) for each in range(50)],
            "has age > 60; the values of age are from 0 to 49, in the units of the samples",
        ),
    ],
)
def test_a_condition_that_cannot_hold_says_why(condition, values, message):
    with pytest.raises(DataError, match=message):
        Condition.parse(condition).mask(np.array(values))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("age>60 and sex=female", ["age > 60", "sex = 'female'"]),
        ("age > 60 AND sex == 'female'", ["age > 60", "sex = 'female'"]),
        ("city=Trinidad and Tobago", ["city = 'Trinidad and Tobago'"]),
        (
            "city=Trinidad and Tobago and age<=3 and sex!=male",
            ["city = 'Trinidad and Tobago'", "age <= 3", "sex != 'male'"],
        ),
    ],
)
def test_conditions_are_joined_by_and(text, expected):
    assert list(map(str, Condition.parse_all(text))) == expected


def test_samples_fulfill_all_conditions_or_the_counts_of_each_are_said():
    ages, sexes = np.array(["61", "70", "20"]), np.array(["male", "female", "female"])
    both = Condition.parse_all("age>60 and sex=female")
    assert all_hold(both, [ages, sexes]).tolist() == [False, True, False]
    with pytest.raises(DataError, match="1 have age < 60, 1 have sex = 'male', and none all of these"):
        all_hold(Condition.parse_all("age<60 and sex=male"), [ages, sexes])


@pytest.mark.parametrize(
    "rows", [[(VECTOR, n) for n in (0, 1, 1)], [{"x": VECTOR, "y": n, "size": n} for n in (0, 1, 1)]]
)
def test_classes_go_by_name_or_number_in_columns_of_classes(rows):
    columns = Columns(rows, classes=lambda: np.array([0, 1, 1]), class_names=["benign", "malignant"])
    for condition in ("y=malignant", "y=1", "y!=benign", "label=malignant", "label=1", "x[0]=9 and label=malignant"):
        assert columns.where(condition).tolist() == [False, True, True], condition
    with pytest.raises(DataError, match="no training sample has y = 'malign'; the values of y are '0', '1'"):
        columns.where("y=malign")
    with pytest.raises(DataError, match=r"no training sample has x\[0\] = 'benign'"):
        columns.where("x[0]=benign")
    with pytest.raises(DataError, match="their columns are .*y.*, label$"):
        columns.where("age>3")


@pytest.mark.parametrize(
    ("changes", "condition", "ending"),
    [
        ({}, "region=islands", "'0', '1', '2'; render region"),
        ({}, "region!=islands and y=malign", "of y are '0', '1'; class_names; render y"),
        ({}, "label=malign", "of label are '0', '1'; class_names; render label"),
        ({"class_names": ["ok", "bad"]}, "y=malign", "of y are '0', '1', of the classes 'ok', 'bad'"),
        ({"class_names": ["0", "1"]}, "y=malign", "of y are '0', '1'; class_names; render y"),
        ({"number_of": float, "classes": lambda: None}, "label=malign", "of label are '0', '1', '2'"),
        ({}, "region=7", "'0', '1', '2'"),
        ({}, "town=Bern", "of town are 'Basel'"),
        ({"gives_words": "", "names_classes": ""}, "y=malign", "'0', '1'"),
    ],
)
def test_a_word_among_numbers_is_answered_with_what_gives_words(changes, condition, ending):
    rows = [{"region": torch.tensor(n), "y": n % 2, "town": "Basel"} for n in range(3)]
    hints = {"gives_words": "render {column}", "names_classes": "class_names"}
    columns = Columns(rows, **({"classes": lambda: np.array([0, 1, 0])} | hints | changes))
    with pytest.raises(DataError) as refused:
        columns.where(condition)
    assert str(refused.value).endswith(ending)


def test_a_column_of_its_own_is_not_taken_for_the_class():
    rows = [{"label": word} for word in ("benign", "odd", "odd")]
    columns = Columns(rows, classes=lambda: np.array([1, 0, 0]), class_names=["benign", "malignant"])
    assert columns.where("label=benign").tolist() == [True, False, False]
