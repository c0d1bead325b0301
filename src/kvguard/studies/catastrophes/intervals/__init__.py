"""What ``ablate``, ``transfer`` and ``live-validate`` made, with intervals; nothing is fitted here."""
