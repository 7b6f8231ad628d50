"""The pages, and what keeps them true: `python -m docs.numbers`."""
