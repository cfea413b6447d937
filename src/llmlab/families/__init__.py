"""Published families, one a file, named as their Hugging Face `model_type` (a hyphen there is an underscore here).
A family is a config and a name map.

Each file offers `MODEL_TYPE`, `PUBLISHED` (year and month of its first paper or weights), `PREFIX`, `IGNORED`,
`read_config`, `write_config` and `names`; `families/mapping.py` does the rest. Files without a `MODEL_TYPE` hold what
several families share.
"""
