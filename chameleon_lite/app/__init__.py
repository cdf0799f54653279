"""The method for own texts: corpora from files, fit, adapt, and the command line."""

from importlib.resources import files

import yaml

SENTENCES = yaml.safe_load(files(__name__).joinpath("sentences.yaml").read_text(encoding="utf-8"))
