"""The command line: each verb calls one function. torch is imported when a verb needs it, so `--help` is quick.

Exit codes: 0; 2 for bad input, with one line on standard error; 1 for a failure on the way; 130 after Ctrl-C.
"""

from llmlab.cli.main import app, main

__all__ = ["app", "main"]
