"""Certify the robustness of a denoised classifier: the same as `dp certify`; see dp/commands/certify.py."""

import sys

from dp.commands.certify import main

if __name__ == "__main__":
    sys.exit(main())
