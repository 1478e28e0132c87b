"""`python -m fanout_sync` is `fanout-sync`."""

from .cli.group import main

if __name__ == "__main__":
    main()
