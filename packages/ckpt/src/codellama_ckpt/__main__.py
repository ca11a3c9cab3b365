"""`python -m codellama_ckpt` is the command `codellama-ckpt`."""

import sys

from codellama_ckpt.cli import main

sys.exit(main())
