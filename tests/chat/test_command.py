"""``trak sft``, from the folder of a trainer to answers and the examples behind them."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import chat, make, tokenizer

from trak_lightning import TRAK
from trak_lightning.chat import ChatDataset, Encoder, collate
from trak_lightning.cli import main
from trak_lightning.run.directory import RunDirectory
from trak_lightning.scoring.scores import Scores

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TARGETS = [
    {"prompt": [{"role": "user", "content": "2+3"}]},
    chat("2+4", "=6"),
    {"prompt": "a", "chosen": "b", "rejected": "c"},
]


@pytest.fixture
def command(folder, lines, conversations, tmp_path, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls

    def call(*options, run="run", model=folder, train=conversations, targets=TARGETS):
        data = ["--data", lines("train.jsonl", train), "--targets", lines("targets.jsonl", targets)]
        return main(["sft", str(tmp_path / run), "--model", model, *data, "--max-new-tokens", "4", *options])

    return call


def test_one_command_scores_given_and_written_answers_as_python_does(command, conversations, folder, tmp_path, capsys):
    assert command("--projector.dim", "256") == 0
    shown = capsys.readouterr().out
    assert re.search(r"target 1: 2\+4 → =6 \(mean p\(token\) 0\.\d{3}\)\n", shown)
    assert " 2+2 → =4" in shown, "as trak top shows it"
    assert "example 2: chosen − rejected (a → + b − c)" in shown
    answers = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert [answer["example"] for answer in answers] == [0, 1, 2, 2]
    assert len(answers[0]["answer_ids"]) <= 4
    found = Scores(tmp_path / "run" / "scores" / "test.h5").values[:]
    encoder = Encoder(tokenizer(), 64)
    loaders = (
        torch.utils.data.DataLoader(ChatDataset(rows, encoder), batch_size=8, collate_fn=collate)
        for rows in (conversations, [chat("2+4", "=6")])
    )
    trak = TRAK(make("llama"), "causal_lm", tmp_path / "python", projector={"name": "sparse_jl", "dim": 256})
    trak.featurize(next(loaders))
    expected = trak.score(next(loaders)).values[:]
    # Names of parameters seed the projection, and those of the command begin with that of the module.
    assert np.corrcoef(found[1], expected[0])[0, 1] > 0.9
    difference = Scores(tmp_path / "run" / "scores" / "groups.h5").values[:][2]
    np.testing.assert_allclose(difference, found[2] - found[3], rtol=1e-3, atol=1e-4 * abs(found).max())


def test_spans_have_ellipses_groups_of_several_are_means_and_an_empty_answer_is_called_empty(
    command, tmp_path, capsys, monkeypatch
):
    asked = chat("2+4", "it is =6.") | {"span": "is", "group": "verb"}
    pair = {"prompt": "a", "chosen": "bb", "rejected": "cb", "span": "b"}
    sums = [chat("2+4", "=6") | {"group": "sums"}, chat("2+5", "=7") | {"group": "sums"}]
    command(targets=[asked, asked | {"span": "it is =6.", "group": None}, pair, chat("2+4", ""), *sums])
    shown = capsys.readouterr().out
    assert "target 4: 2+4 → (empty answer: only the end token)" in shown
    assert "sums (mean of 2 answers: =6 · =7)" in shown
    assert shown.count("trust ") == 1
    assert re.search(r"\n2 more targets: trak top .*run --target 5; all on a page: trak report .*run\n", shown)
    assert "target 0: 2+4 → … is … (mean p(token) " in shown
    assert "target 1: 2+4 → it is =6. (mean p(token) " in shown
    assert "verb (2+4 → … is …)" in shown
    assert "chosen − rejected (a → + b … − … b)" in shown
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("trak_lightning.cli.kept_mistakes._predicted", None)  # a language model predicts no classes
    run = str(tmp_path / "run")
    assert main(["whatif", run, "--remove", "1,"]) == 0
    assert re.search(r"\n +0 .* 2\+4 → … is …\n", capsys.readouterr().out)
    for options, line in (
        (["--target", "0"], r"Target 0 of .*, 2\+4 → … is …\n"),
        (["--target", "4"], r"Target 4 of .*, 2\+4 → \(empty answer: only the end token\)\n"),
        (["--by_train", "1"], r" 0 .* 2\+4 → … is … "),
        ([], r"^7 targets, lowest mean p\(token\) first: the task predicts (.|\n)*\n +0 .* 2\+4 → … is …\n"),
    ):
        assert main(["top", run, "--name", "test", *options]) == 0
        assert re.search(line, capsys.readouterr().out), options
    kept = tmp_path / "run" / "answers.jsonl"
    kept.write_text(
        kept.read_text().replace('"2+4"', '"9+9"').replace('"content": ', '"content": 1')
    )  # of other answers
    assert main(["whatif", run, "--remove", "1,", "--target", "0"]) == 0
    assert "9+9" not in capsys.readouterr().out


def test_a_check_says_what_it_would_cost_and_answers_and_stores_nothing(command, tmp_path, capsys):
    assert command("--check", "true") == 0
    shown = capsys.readouterr().out
    assert re.search(r"lengths +\d+ to \d+, .* of similar length\ntime .*\nmemory .*\ndisk ", shown)
    assert not (tmp_path / "run").exists()


def test_the_same_command_without_options_resumes_and_options_that_would_have_no_effect_are_refused(
    command, tmp_path, capsys
):
    command()
    capsys.readouterr()
    assert main(["sft", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 3
    assert main(["sft", str(tmp_path / "run"), "--targets", "others.jsonl"]) == 2
    assert "--targets has no effect without --model: the run has settings of its own" in capsys.readouterr().err


def test_the_report_marks_the_tokens_that_moved_the_target(command, tmp_path, capsys):
    command()
    run = str(tmp_path / "run")
    assert main(["report", run, "--tokens", "--name", "test", "--targets", "[1]"]) == 0
    capsys.readouterr()
    best = Scores(tmp_path / "run" / "scores" / "test.h5").top(3, target=1).indices
    assert main(["tokens", run, "--target", "1", "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)
    assert [pair["example"] for pair in pairs] == best.tolist()
    page = (tmp_path / "run" / "report" / "test.html").read_text()
    marked = re.findall(r'<p class="text tokens" dir="auto">\n?(.*)</p>', page)
    shares = [[float(share) for share in re.findall(r"--share:(\d+)%", text)] for text in marked]
    for pair, example, target in zip(pairs, shares[::2], shares[1::2], strict=False):
        values = np.array(pair["values"])
        for axis, found in ((0, example), (1, target)):
            moved = np.abs(values.sum(axis))
            np.testing.assert_allclose(found, 100 * moved / moved.max(), atol=0.51)
    text = html.unescape("".join(re.findall(r'title="[^"]*">([^<]*)<', marked[1])))
    assert text == "".join(pairs[0]["target_tokens"])
    assert text.startswith("=6")


def test_fewer_examples_than_are_shown_by_default_are_all_shown(command, conversations, tmp_path, capsys):
    command(train=conversations[:2])
    run = str(tmp_path / "run")
    capsys.readouterr()
    assert main(["top", run, "--target", "0", "--name", "test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(each["index"] for side in (found["helpful"], found["harmful"]) for each in side) == [0, 1]
    assert main(["tokens", run, "--target", "0", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main(["tokens", run, "--target", "0", "--train", "1", "--json"]) == 0
    shown = capsys.readouterr()
    assert [each["example"] for each in json.loads(shown.out)] == [1]
    assert "--train is now --example" in shown.err


def test_several_checkpoints_of_an_adapter_are_scored_together(command, folder, tmp_path):
    for step in (9, 10):
        model = make("llama", "lora", seed=step)
        model.peft_config["default"].base_model_name_or_path = folder
        model.save_pretrained(tmp_path / "out" / f"checkpoint-{step}")
    assert command(model=str(tmp_path / "out" / "checkpoint-*")) == 0
    sources = [record.source for record in RunDirectory(tmp_path / "run").read().checkpoints]
    assert [source.rpartition("-")[2] for source in sources] == ["9", "10"]
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["data"]["init_args"]["model"].endswith("checkpoint-10")


def test_the_configuration_file_runs(folder, lines, conversations, tmp_path, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "out/checkpoint-300")
    lines("train.jsonl", conversations)
    lines("prompts.jsonl", TARGETS)
    configuration = Path(__file__).parents[2] / "configs" / "sft.yaml"
    assert main(["run", "--config", str(configuration), "--data.max_new_tokens", "4"]) == 0
    assert Scores("runs/sft/scores/groups.h5").values.shape == (3, 9)


def test_a_second_file_of_questions_has_rows_and_scores_of_its_own(command, tmp_path, capsys):
    command()
    first = (tmp_path / "run" / "scores" / "test.h5").read_bytes()
    capsys.readouterr()
    questions = [chat("1+1", "=2"), chat("2+2", "=4"), {"prompt": "a", "chosen": "b", "rejected": "c", "group": "g"}]
    assert command("--name", "second", targets=questions) == 0
    assert "featurize  13 rows" in capsys.readouterr().out
    scores = tmp_path / "run" / "scores"
    assert {path.stem for path in scores.glob("*.h5")} == {"test", "groups", "second", "second-groups"}
    assert (scores / "test.h5").read_bytes() == first
    run = str(tmp_path / "run")
    assert main(["top", run, "--name", "second", "--by_train", "1", "-k", "4"]) == 0
    shown = capsys.readouterr().out
    assert "1+1 → =2" in shown
    assert "label" not in shown
    for name, heading in (("second", r"mean p\(token\) 0\.\d{3}, 1\+1 → =2"), ("second-groups", "example 0")):
        assert main(["top", run, "--name", name, "--target", "0", "-k", "4"]) == 0
        title = f"Target 0 of {re.escape(run)}/scores/{name}.h5: {heading}"
        assert re.search(title.replace(" ", ""), "".join(capsys.readouterr().out.split()))
    for options in (
        ["top", run, "--target", "0", "-k", "4"],
        ["tokens", run, "--target", "0", "-k", "1"],
        ["whatif", run, "--remove", "1,"],
        ["select", run, "--budget", "2"],
    ):
        found = []
        for name in ("--name", "--target_split"):
            assert main([*options, name, "second", "--json"]) == 0
            found.append(json.loads(capsys.readouterr().out))
        assert found[0] == found[1]
    for options in (["whatif", run, "--remove", "1,"], ["select", run, "--budget", "2"]):
        found = []
        for name in ("test", "second"):
            assert main([*options, "--name", name, "--json"]) == 0
            found.append(json.loads(capsys.readouterr().out))
        assert found[0] != found[1]
        assert main([*options, "--name", "second-groups"]) == 1
        assert (
            "groups or differences of targets, and this command is about single targets: --name second."
            in capsys.readouterr().err
        )
        assert main([*options, "--name", "third"]) == 1
        assert "no scores named 'third'; it has groups, second" in capsys.readouterr().err
    # As many targets, but others: those of the first file are shown by its answers.
    assert main(["top", run, "--name", "test", "--by_train", "1", "-k", "4"]) == 0
    shown = capsys.readouterr()
    assert "2+4 → =6" in shown.out
    assert "1+1 → =2" not in shown.out
    assert main(["tokens", run, "--name", "test", "--target", "0"]) == 1
    assert "repeat the command that asked: trak sft RUN --targets FILE --name test" in capsys.readouterr().err
    assert command("--name", "train") == 2
    assert "name, of the targets, must be a word other than train" in capsys.readouterr().err


def test_other_questions_under_the_same_name_are_told_to_take_another(command, capsys):
    command()
    for count in (1, 3):
        capsys.readouterr()
        assert command(targets=[chat(f"{n}+1", f"={n + 1}") for n in range(count)]) == 1
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert f"'test' holds 4 targets, and {count} are given: these are others." in error
        assert "trak sft --name again" in error


def test_samples_are_removed_by_a_column_that_is_not_encoded(command, conversations, tmp_path, capsys):
    command(
        train=[row | {"source": "book"} if n > 5 else row | {"source": None} for n, row in enumerate(conversations)]
    )
    capsys.readouterr()
    run = str(tmp_path / "run")
    assert main(["whatif", run, "--remove_where", "source=book", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == [6, 7, 8]
    assert main(["whatif", run, "--remove", "6,7,8"]) == 0
    assert re.search(r"\n +1 .* 2\+4 → =6\n", capsys.readouterr().out), (
        "question and answer are in the row of the target"
    )
    assert main(["whatif", run, "--remove_where", "source=web"]) == 1
    assert "no training sample has source = 'web'; the values of source are 'None', 'book'" in capsys.readouterr().err
    assert main(["whatif", run, "--remove_where", "sauce=book"]) == 1
    refused = capsys.readouterr().err
    assert "no column 'sauce'; their columns are messages, source. Add it to the lines of the file" in refused
    assert "; or give positions of lines, of which the first is 0: --remove 3,17, or --remove rows.npy" in refused
    assert "table" not in refused
    assert "DataModule" not in refused


def test_text_that_gets_no_chat_template_is_named_once(command, caplog, tmp_path):
    command(train=[{"prompt": "1+1", "completion": "2"}, *[chat("2+2", "4")] * 3], targets=[{"prompt": "1+2"}])
    for name, number, of in (("train", 1, 4), ("targets", 1, 1)):
        assert f"{number} of {of} examples of {tmp_path / name}.jsonl are plain text" in caplog.text
    caplog.clear()
    main(["top", str(tmp_path / "run"), "--target", "0"])
    assert "plain text" not in caplog.text


def test_an_encoder_decoder_is_attributed_too(command, tmp_path):
    make("t5").save_pretrained(tmp_path / "t5")
    tokenizer().save_pretrained(tmp_path / "t5")
    rows = [{"prompt": f"{n}+1", "completion": str(n + 1)} for n in range(6)]
    assert command(model=str(tmp_path / "t5"), train=rows, targets=[rows[0], {"prompt": "7+1"}]) == 0
    assert Scores(tmp_path / "run" / "scores" / "test.h5").values.shape == (2, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [{"messages": [{"role": "user", "content": "hi"}]}]}, "example 0 of .*train.jsonl has no turn"),
        (
            {"train": [{"question": "hi"}], "targets": [{"prompt": "x" * 62}]},
            r"example 0 of .*train.jsonl has the columns question",
        ),
        ({"targets": []}, "targets.jsonl is empty"),
        (
            {"targets": [chat("hi", "x" * 60)]},
            r"example 0 of .*targets.jsonl is 83 tokens long, and may have 64",
        ),
        ({"model": "/none"}, "/none"),
        ({"targets": [{"messges": []}]}, "the columns messges .list.; expected messages"),
        (
            {"targets": [{"prompt": "x" * n} for n in (5, 61, 62)]},
            r"2 of 3 prompts leave no room for an answer, which may have 4 .*: the longest, example 2 of .*targets.jsonl, is 62 tokens long, "
            r".* together may have 64 .* Lower max_new_tokens to 2, with which all prompts fit",
        ),
    ],
)
def test_a_mistake_is_one_line_and_a_check_finds_it_too(command, changes, message, capsys, caplog):
    errors = []
    for options in ((), ("--check", "true")):
        caplog.clear()
        assert command(*options, **changes) == 1
        errors.append(capsys.readouterr().err.strip())
        assert ("plain text" in caplog.text) is any(
            "prompt" in row for row in changes.get("targets", [] if "model" in changes else TARGETS)
        )
    assert errors[0] == errors[1]
    assert len(errors[0].splitlines()) == 1
    assert re.search(message, errors[0])


def test_a_verification_that_was_left_out_once_is_made_again_by_later_calls(command, tmp_path):
    command("--verify_data", "off")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["verify_data"] == "sampled"
    command("--verify_data", "full")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["verify_data"] == "full"


def test_that_the_model_cannot_be_retrained_is_said_before_anything_is_recorded(command, tmp_path, capsys):
    command()
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--evaluation.models", "4"]) == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "LanguageModel is for models that are trained already" in error
    assert not (tmp_path / "run" / "evaluation").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "model is missing"),
        (["--model", "x"], "data is missing"),
        (["--max_new_token", "4"], "unknown option --max_new_token; did you mean --max_new_tokens?"),
    ],
)
def test_what_is_missing_is_named(argv, message, capsys, tmp_path):
    assert main(["sft", str(tmp_path / "run"), *argv]) == 2
    assert message in capsys.readouterr().err
