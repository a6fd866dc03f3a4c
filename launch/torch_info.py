"""Prints "<torch folder>;<cxx11 abi>;<version>;<site-packages>" for CMake, from the torch of this Python. The last is where pip
puts packages: another folder than torch's in a virtual environment over a torch of the system. Exit 1: none, or older than 2.8."""
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

try:
    text = version("torch")
    numbers = tuple(int(x) for x in text.split("+")[0].split(".")[:2])
    root = find_spec("torch").submodule_search_locations[0]
except (PackageNotFoundError, AttributeError, ValueError):
    sys.exit(1)
if numbers < (2, 8):
    sys.exit(1)
# Wheels since 2.7 are built with the C++11 ABI; importing torch to ask would cost seconds at every configure.
print(f"{root};1;{text};{sysconfig.get_path('purelib')}", end="")
