"""`python -m fanout_sync` is `fanout-sync`."""

from .cli import main

if __name__ == "__main__":
    main()
