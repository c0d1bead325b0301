"""``python -m kv_transition``."""

from kv_transition.cli import main

if __name__ == "__main__":
    main(prog_name="kv-transition")
