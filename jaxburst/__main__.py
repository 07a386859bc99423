"""`python -m jaxburst`."""

import sys

from jaxburst.cli import main

sys.exit(main())
