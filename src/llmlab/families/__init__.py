"""Published families, one a file, named as their Hugging Face `model_type`. A family is a config and a name map.

Each file offers `MODEL_TYPE`, `read_config`, `write_config` and `names`; `families/mapping.py` does the rest.
"""
