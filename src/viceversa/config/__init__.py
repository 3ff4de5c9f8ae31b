"""Every option, checked; from YAML files, packaged recipes and overrides."""

from viceversa.config.checks import INF, ConfigError, build, check, check_number
from viceversa.config.objects import blame, blamed, load_object
from viceversa.config.options import (
    Config,
    DataConfig,
    EvalConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    ReplayConfig,
    RewardConfig,
    RewardTerm,
    SamplingConfig,
    WatchConfig,
)
from viceversa.config.paths import check_file, check_folder
from viceversa.config.reading import (
    RECIPES,
    file_of,
    load_config,
    merged,
    read_options,
    recipe_names,
    save_config,
    to_dict,
    with_options,
)

__all__ = [
    "INF",
    "RECIPES",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "ReplayConfig",
    "RewardConfig",
    "RewardTerm",
    "SamplingConfig",
    "WatchConfig",
    "blame",
    "blamed",
    "build",
    "check",
    "check_file",
    "check_folder",
    "check_number",
    "file_of",
    "load_config",
    "load_object",
    "merged",
    "read_options",
    "recipe_names",
    "save_config",
    "to_dict",
    "with_options",
]
