"""`python -m codellama_data` is the command `codellama-data`."""

import sys

from codellama_data.cli import main

sys.exit(main())
