"""The live explorer, `saddleflow explore`: settings (`state`), runs, predictions, pictures, and the page (`app`).

Data goes one way: the page makes `Settings`, `runs` makes results of them, `pictures` draws results. Only `app` and
`server` need marimo.
"""
