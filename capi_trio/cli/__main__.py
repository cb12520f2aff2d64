"""`python -m capi_trio.cli`, the same as `capi`."""

from capi_trio.cli import main

if __name__ == "__main__":
    main()
