"""Times the import of modules: `import_time.py MODULE...`; of `MODULE:*` each public name is asked for as well."""

import sys
from time import perf_counter

began = perf_counter()
for argument in sys.argv[1:]:
    name, _, everything = argument.partition(":")
    module = __import__(name)
    for public in module.__all__ if everything else ():
        getattr(module, public)
elapsed_s = perf_counter() - began
loaded = sorted(sys.modules)

import json  # noqa: E402 - not earlier: it may be among what is timed

print(json.dumps({"s": elapsed_s, "loaded": loaded}))
