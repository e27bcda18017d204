import pytest

from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config, read_config, write_config
from ehrsequencing.errors import ConfigError


def test_precedence_file_then_set_then_flag(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[optim]\nlr = 1e-2\nweight_decay = 0.5\n[loop]\nepochs = 7\n")
    config = load_config(
        PretrainConfig, file, ["optim.lr=2e-2", "loop.epochs=8"], {"loop.epochs": 9, "loop.seed": None}
    )
    assert (config.optim.lr, config.optim.weight_decay, config.loop.epochs, config.loop.seed) == (0.02, 0.5, 9, 0)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, None, ["optim.lr=-1", "model.size=huge", "optim.learning_rate=1", "loop.epochs=x"])
    message = str(caught.value)
    assert message.startswith("4 problems")
    for part in ("optim.lr", "model.size", "unknown key 'optim.learning_rate'", "loop.epochs"):
        assert part in message
    assert "\n" not in message


def test_unknown_key_suggests_the_near_one():
    with pytest.raises(ConfigError, match="did you mean 'loop.epochs'"):
        load_config(PretrainConfig, None, ["loop.epoch=3"])


def test_adapting_nothing_is_refused():
    with pytest.raises(ConfigError, match="adapt nothing"):
        load_config(FinetuneConfig, None, ["lora.attention=false"])


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is missing"), ("lr = = 3", "not valid TOML"), ("optim = 3", "optim")]
)
def test_bad_files(tmp_path, content, message):
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(PretrainConfig, file)


@pytest.mark.parametrize("item", ["lr", "=3", "objective.x.y=1"])
def test_bad_sets(item):
    with pytest.raises(ConfigError):
        load_config(PretrainConfig, None, ["objective=mlm", item])


def test_resolved_configuration_reads_back(tmp_path):
    config = load_config(FinetuneConfig, None, ["method=scratch", "optim.lr=3e-4"])
    write_config(tmp_path / "config.toml", config)
    assert read_config(FinetuneConfig, tmp_path / "config.toml") == config


@pytest.mark.parametrize(("method", "lr"), [("lora", 1e-3), ("full", 5e-4), ("probe", 1e-3), ("scratch", 1e-3)])
def test_the_learning_rate_follows_the_method_where_none_is_given(tmp_path, method, lr):
    config = load_config(FinetuneConfig, overrides={"method": method})
    assert config.optim.lr == lr
    assert load_config(FinetuneConfig, overrides={"method": method, "optim.lr": 7e-4}).optim.lr == 7e-4
    assert load_config(FinetuneConfig, sets=["optim.beta2=0.9"], overrides={"method": method}).optim.lr == lr
    write_config(tmp_path / "config.toml", config)
    assert read_config(FinetuneConfig, tmp_path / "config.toml").model_dump() == config.model_dump()
    asked = config.model_dump(exclude_unset=True)
    assert asked == {"method": method, **({"optim": {}} if "optim" in asked else {})}, "it was not asked for"


def test_a_wrong_table_or_method_is_still_named():
    with pytest.raises(ConfigError, match="method.*'lorra'.*optim"):
        load_config(FinetuneConfig, overrides={"method": "lorra", "optim": 3})


@pytest.mark.parametrize("method", ["scratch", "full", "probe"])
def test_adapter_options_without_adapters_are_refused(tmp_path, method):
    for sets, flags in ((["lora.alpha=4"], {}), ([], {"lora.rank": 8})):
        with pytest.raises(ConfigError, match=f"lora: .*method {method} has no adapters, so this would have no effect"):
            load_config(FinetuneConfig, None, sets, {"method": method, **flags})
    config = load_config(FinetuneConfig, overrides={"method": method})
    write_config(tmp_path / "config.toml", config)
    assert "lora" not in (tmp_path / "config.toml").read_text().replace("method", "")
    assert read_config(FinetuneConfig, tmp_path / "config.toml") == config


def test_toml_that_is_too_deep(tmp_path):
    file = tmp_path / "deep.toml"
    file.write_text("x = " + "[" * 9000)
    with pytest.raises(ConfigError, match="is not valid TOML; got "):
        load_config(PretrainConfig, file)
