"""Every file of the configuration composes into its dataclass."""

from pathlib import Path

import pytest

from data_gen.build import BuildConfig
from diff_oracle.cli import compose
from diff_oracle.evaluate import EvaluateConfig
from diff_oracle.explain.__main__ import ExplainConfig
from diff_oracle.explain_head import ExplainHeadConfig
from diff_oracle.report import ReportConfig
from diff_oracle.serve import ServeConfig
from diff_oracle.tasks import TASKS, make_tasks
from diff_oracle.train import TrainConfig
from diff_oracle.train_ar import TrainArConfig
from diff_oracle.train_rl import TrainRlConfig
from diff_oracle.verbalise import VerbaliseConfig

CONF = Path(__file__).parents[1] / "conf"
MEASURED = {"logit_lens", "attention", "layer_skip"}
EXPERIMENTS = {"+experiment=three_tasks": MEASURED, "+experiment=explainer": {*MEASURED, "explanation"}}
GROUPS = ("model", "corpus", "sites", "injection", "input", "map", "lora")
CHOICES = [f"{group}={file.stem}" for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
CHOICES += [
    f"+{group}={file.stem}" for group in ("experiment", "debug") for file in sorted((CONF / group).glob("*.yaml"))
]
CHOICES.remove("+experiment=rl_arms")  # of another command


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    config = compose("train", TrainConfig, ["+task=logit_lens", choice])
    assert set(config.tasks) == EXPERIMENTS.get(choice, {"logit_lens"})
    group, _, name = choice.partition("=")
    chosen = {
        "corpus": config.corpus.name,
        "injection": config.injection.kind,
        "input": config.injection.input,
        "map": config.injection.map,
    }
    assert chosen.get(group, name) == name


@pytest.mark.parametrize(("name", "schema"), [("train", TrainConfig), ("build", BuildConfig)])
def test_commands_that_measure_want_a_task(name: str, schema: type) -> None:
    with pytest.raises(
        ValueError, match=r"no task: add \+task=NAME \(choose from attention, explanation, layer_skip, logit_lens\)"
    ):
        compose(name, schema)


@pytest.mark.parametrize(("name", "schema"), [("train", TrainConfig), ("build", BuildConfig)])
def test_tasks_compose_together(name: str, schema: type[BuildConfig]) -> None:
    config = compose(name, schema, ["+task=[logit_lens,attention,layer_skip]", "tasks.layer_skip.small_kl=0.1"])
    assert list(config.tasks) == ["logit_lens", "attention", "layer_skip"]
    assert [task.name for task in make_tasks(config.tasks)] == list(config.tasks)
    assert config.tasks["layer_skip"]["small_kl"] == 0.1


def test_evaluate_composes() -> None:
    assert compose("evaluate", EvaluateConfig, ["oracle=runs/demo"]).split == "test"


def test_explain_composes() -> None:
    config = compose("explain", ExplainConfig, ["oracle=runs/demo", "position=[3,-1]", "sites.names=[L5H3,layers]"])
    assert (config.position, config.sites.names) == ([3, -1], ["L5H3", "layers"])
    assert compose("explain", ExplainConfig, ["oracle=runs/demo", "position=all"]).position == "all"


@pytest.mark.parametrize("words", [[], ["oracle=runs/demo", "nla=runs/nla"]])
@pytest.mark.parametrize(
    ("name", "schema"), [("explain", ExplainConfig), ("explain_head", ExplainHeadConfig), ("serve", ServeConfig)]
)
def test_an_oracle_or_a_pair_explains(name: str, schema: type, words: list[str]) -> None:
    more = ["head=L5"] if name == "explain_head" else []
    assert compose(name, schema, ["nla=runs/nla", *more]).nla == "runs/nla"
    with pytest.raises(ValueError, match="give either oracle=RUN, .* or nla=RUN"):
        compose(name, schema, [*words, *more])


@pytest.mark.parametrize("choice", sorted(file.stem for file in (CONF / "ar").glob("*.yaml")))
def test_every_reconstructor_composes(choice: str) -> None:
    config = compose("train_ar", TrainArConfig, ["oracle=runs/explainer", f"ar={choice}"])
    chosen = {"small": config.ar.blocks == 2, "given_text": config.ar.before == "text"}
    chosen |= {"residual": config.ar.target == "residual", "regularised": config.ar.lora.rank == 8}
    chosen |= {"given_before": config.ar.before == "vector" and config.ar.target == "diff"}
    assert {name for name, is_so in chosen.items() if is_so} == ({choice} & chosen.keys())


@pytest.mark.parametrize("choice", sorted(file.stem for file in (CONF / "rewriting").glob("*.yaml")))
def test_every_source_of_wordings_composes(choice: str) -> None:
    needed = {"endpoint": ["rewriting.url=http://localhost:1/v1", "rewriting.model=any"]}.get(choice, [])
    words = ["oracle=runs/explainer", f"rewriting={choice}"]
    assert compose("train_ar", TrainArConfig, [*words, *needed]).rewriting.source == choice
    if needed:
        with pytest.raises(ValueError, match=r"rewriting\.url must begin with http"):
            compose("train_ar", TrainArConfig, words)


def test_verbalise_composes() -> None:
    config = compose("verbalise", VerbaliseConfig, ["+task=[logit_lens,explanation]", "model=smollm2_135m"])
    assert config.sites.per_position is None


def test_explain_head_composes() -> None:
    config = compose("explain_head", ExplainHeadConfig, ["oracle=runs/demo", "head=L5", "corpus=text_files"])
    assert (config.head, config.corpus.name, config.sampling.max_documents) == ("L5", "text_files", 50)


def test_train_rl_composes() -> None:
    assert compose("train_rl", TrainRlConfig, ["nla=runs/nla"]).nla == "runs/nla"
    for arm in sorted(file.stem for file in (CONF / "rl").glob("*.yaml")):
        config = compose("train_rl", TrainRlConfig, ["nla=runs/nla", "+experiment=rl_arms", f"rl={arm}"])
        gated = config.rl.reward.truth_gated
        assert (config.rl.steps, gated) == (100, "gated" in arm)
        assert config.rl.arm == {"plain": "rl", "priced": "rl", "truth_gated": "rl", "frozen_gated": "frozen_av"}.get(
            arm, arm
        )


def test_report_composes() -> None:
    assert compose("report", ReportConfig, ["runs=[runs/demo,results/a.json]"]).runs == ["runs/demo", "results/a.json"]


def test_every_task_has_a_file_whose_keys_are_its_config_s() -> None:
    assert {file.stem for file in (CONF / "task").glob("*.yaml")} == set(TASKS)
    for name, (_, schema) in TASKS.items():
        tasks = compose("train", TrainConfig, [f"+task={name}"]).tasks
        assert schema(**tasks[name]) == schema()


def test_yaml_files_do_not_repeat_what_dataclasses_say() -> None:
    """A default lives in one place: the files of a group say only what differs from the dataclass, or its kind."""
    default = compose("train", TrainConfig, ["+task=logit_lens"])
    assert default == TrainConfig(tasks=default.tasks, model=default.model)


def test_a_mixture_and_what_is_held_out_can_be_named() -> None:
    words = ["+mixture.tasks.layer_skip=0", "+mixture.kinds.logit_lens={promoted: 2}", "holdout.layers=[3]"]
    config = compose("train", TrainConfig, ["+task=[logit_lens,layer_skip]", *words])
    assert config.mixture.tasks == {"layer_skip": 0.0}
    assert config.mixture.kinds == {"logit_lens": {"promoted": 2.0}}
    assert config.holdout.layers == [3]
    with pytest.raises(ValueError, match=r"is added with \+mixture.tasks.layer_skip=VALUE"):
        compose("train", TrainConfig, ["+task=layer_skip", "mixture.tasks.layer_skip=0"])


@pytest.mark.parametrize(("key", "said"), [("training.learning_rat=1", "training.learning_rate"), ("seeed=1", "seed")])
def test_a_misspelt_key_is_answered_with_the_right_one(key: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{said}'"):
        compose("train", TrainConfig, ["+task=logit_lens", key])
