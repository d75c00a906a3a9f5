"""``trak sft``: a fine-tuned language model, its conversations and questions → scores."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from trak_lightning.chat.records import TrainOn, answer_line, answers_file
from trak_lightning.cli.arguments import RECIPE, SETTINGS
from trak_lightning.cli.command_line import CommandLine
from trak_lightning.cli.error_messages import UsageError, explained
from trak_lightning.cli.help import command_parser
from trak_lightning.cli.output import short_path, summary
from trak_lightning.scoring.display import ShowsSamples, after_question, excerpt, shortened
from trak_lightning.scoring.scores import Scores, open_scores

if TYPE_CHECKING:
    from trak_lightning.cli.job import Job

FEATURIZING = (*SETTINGS, *RECIPE, "config", "print_config", "seed_everything")
"""Settings of ``trak featurize``, which are options here too."""

SHOWN_TARGETS, SHOWN_EXAMPLES = 5, 3


def main(argv: Sequence[str]) -> int:
    """Featurize conversations and answers, score them, and print the examples behind the first answers."""
    parser = _parser()
    line = CommandLine.of(argv, parser)
    own = {option for action in parser._actions for option in action.option_strings}
    settings = replace(line, options=tuple(option for option in line.options if option.name in own)).parse()
    others = [option.token for option in line.options if option.name not in own]
    for option in line.options:
        if option.name not in own and option.setting not in FEATURIZING:
            raise UsageError(explained(f"unrecognized arguments: {option.name}", parser, [], [], FEATURIZING))
    configured = settings.model or line.configs or line.with_saved_configuration().configs
    if not configured:
        raise UsageError("model is missing: name the folder that your trainer left, --model out/checkpoint-300")
    given = [option.name for option in line.options if option.name in own and option.name not in ("--check", "--help")]
    if settings.model is None and given:
        raise UsageError(
            f"{given[0]} has no effect without --model: the run has settings of its own. Without any of these options the command "
            "resumes. For new questions, or to change one, repeat the other options too (--model, --data …): what is stored and still fits is reused."
        )
    from trak_lightning.cli.commands.check import print_findings
    from trak_lightning.cli.job import Job
    from trak_lightning.cli.shown_samples import keep_samples
    from trak_lightning.report.known import samples_of

    job = Job("check" if settings.check else "sft", [*_configured(settings, line), *others])
    if settings.check:
        return print_findings(job)
    job.require_compatible()
    job.featurize(job.checkpoints())
    scores = job.score()
    if job.speaks:
        keep_samples(job, scores)
        data: Any = job.datamodule
        train = samples_of(job.train_data)
        if data.encoder.train_on == "answers" and not data.encoder.encoder_decoder:
            summary("counted", "the tokens of the assistant; --train_on all if your loss was on all tokens")
        for target, answer in enumerate(data.answers[:SHOWN_TARGETS]):
            shown = answer_line(answer.question, answer.text, answer.span)
            said = "".join(f" ({name} {value})" for name, value in scores.facts(target)[:1])
            _print(f"target {target}: {shown}{said}", scores, target, train)
        groups = list(_groups(data))
        for group, title in groups[:SHOWN_TARGETS]:
            _print(title, open_scores(job.run, job.groups_name), group, train)
        print(_how_to_see_more(job, len(data.answers), len(groups)))
    return 0


def _parser() -> ArgumentParser:
    parser = command_parser(
        "sft",
        "RUN_DIR --model FOLDER --data FILE --targets FILE [options]",
        "Which training conversations taught a fine-tuned language model its answers? All options of trak featurize work too, "
        "such as --projector.dim 4096. RUN_DIR keeps the settings: the same command without options resumes.",
    )
    text, number = str | None, int | None
    parser.add_argument(
        "--model",
        type=text,
        help="folder of a model or PEFT adapter; a pattern for several checkpoints, 'out/checkpoint-*', the last one generates the answers",
    )
    parser.add_argument(
        "--data", type=text, help="training conversations: .jsonl, .json, .parquet, or a folder of datasets"
    )
    parser.add_argument("--targets", type=text, help="held-out answers, or prompts that the model answers")
    parser.add_argument(
        "--name",
        type=str,
        default="test",
        help="name of these targets; another file of targets needs another, and has its own scores, RUN_DIR/scores/NAME.h5",
    )
    parser.add_argument("--base", type=text, help="base model of an adapter, if it has moved")
    parser.add_argument("--tokenizer", type=text, help="folder of the tokenizer; default: that of the model")
    parser.add_argument(
        "--train_on",
        type=TrainOn,
        default="answers",
        help="what was trained on: answers of the assistant, or all tokens",
    )
    parser.add_argument("--max_length", type=number, help="maximum sequence length used in training, in tokens")
    parser.add_argument(
        "--max_new_tokens", type=number, help="maximum tokens to generate; default: 128, or what there is room for"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0 decodes greedily")
    parser.add_argument(
        "--check", type=bool, default=False, help="only say how many seconds, how much memory and disk it would take"
    )
    return parser


def _configured(settings: Namespace, line: CommandLine) -> list[str]:
    """The options as a configuration of a run; nothing if they come from a file."""
    if settings.model is None:
        return []
    missing = [name for name in ("data", "targets") if settings[name] is None]
    if missing or line.value("--run_dir") is None:
        name = (*missing, "run_dir")[0]
        raise UsageError(f"{name} is missing: trak sft RUN_DIR --model FOLDER --data FILE --targets FILE")
    from trak_lightning.chat.loading import read_config
    from trak_lightning.model.checkpoints import expand, has_wildcard

    checkpoints = [str(path) for path in expand(settings.model)] if has_wildcard(settings.model) else [settings.model]
    last = checkpoints[-1]
    config: dict[str, Any] = {
        "model": {
            "class_path": "trak_lightning.chat.LanguageModel",
            "init_args": {"folder": last, "base": settings.base},
        },
        "data": {
            "class_path": "trak_lightning.chat.ChatData",
            "init_args": {
                "model": last,
                "answers": f"{line.value('--run_dir')}/{answers_file(settings.name)}",
                "seed": int(line.value("--seed") or 0),
                **{name: value for name, value in settings.items() if name not in ("model", "check", "help")},
            },
        },
        "target_split": settings.name,
        "checkpoints": checkpoints,
        "task": "seq2seq_lm" if read_config(last, base=settings.base).is_encoder_decoder else "causal_lm",
    }
    return [f"--config={json.dumps(config)}"]


def _groups(datamodule: Any) -> Iterator[tuple[int, str]]:
    """The row and the title of every group of answers that was asked for."""
    for group, name in enumerate(datamodule.combination[0] if datamodule.combination else ()):
        members = [answer for answer in datamodule.answers if answer.group == name]
        if members:
            texts = [excerpt(answer.text, answer.span) for answer in members]
            if any(answer.coefficient < 0 for answer in members):
                signs = ["− " if answer.coefficient < 0 else "+ " for answer in members]
                terms = " ".join(sign + text for sign, text in zip(signs, texts, strict=True))
            else:
                mean = f"mean of {len(members)} answers: " if len(members) > 1 else ""
                terms = mean + " · ".join(texts)
            questions = {answer.question for answer in members}
            asked = questions.pop() if len(questions) == 1 else ""
            yield group, f"{name} ({after_question(asked, shortened(terms))})"


def _print(title: str, scores: Scores, target: int, train: ShowsSamples) -> None:
    print(f"\n{title}")
    best, _ = scores.sides(min(SHOWN_EXAMPLES, scores.shape[1]), target)
    for index, score in best.written():
        print(f"  {score:>15}  {index:>7}  {shortened(train.show(int(index)).line)}")


def _how_to_see_more(job: "Job", targets: int, groups: int) -> str:
    """Which targets and examples are not printed, and the commands that print them."""
    run = short_path(job.run.path)
    others = f"{targets - SHOWN_TARGETS:,} more targets: " if targets > SHOWN_TARGETS else "More examples: "
    name = job.settings.target_split
    own = "" if name == "test" else f" --name {name}"
    lines = [
        f"{others}trak top {run}{own} --target {min(SHOWN_TARGETS, targets - 1)}; all on a page: trak report {run}{own}"
    ]
    if groups > SHOWN_TARGETS:
        lines.append(
            f"{groups - SHOWN_TARGETS:,} more groups: trak top {run} --name {job.groups_name} --target {SHOWN_TARGETS}"
        )
    return "\n" + "\n".join(lines)
