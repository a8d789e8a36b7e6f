"""Settings: their schema, layers, command line and rules."""

from capo_fast.config.arguments import load_config
from capo_fast.config.load import dump_config
from capo_fast.config.schema import Config
from capo_fast.errors import ConfigError

__all__ = ["Config", "ConfigError", "dump_config", "load_config"]
