"""`python -m codellama_eval` is the command `codellama-eval`."""

import sys

from codellama_eval.cli import main

sys.exit(main())
