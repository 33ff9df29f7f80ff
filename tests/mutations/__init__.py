"""A thousand broken inputs: each is refused in one sentence that names it, or gives the right result.

`python -m tests.mutations --seed 15 --count 1000` makes them; `tests/workflows/test_mutations.py` makes a few
at another seed. A mutation is drawn from the seed and its number alone: `--only NUMBER` makes it again.
"""
