"""The version that a wheel says it has."""

import sys
import zipfile
from email.parser import HeaderParser

with zipfile.ZipFile(sys.argv[1]) as wheel:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    print(HeaderParser().parsestr(wheel.read(name).decode())["Version"])
