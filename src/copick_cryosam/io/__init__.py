"""Reading from and writing to copick projects: the only package that touches copick and zarr.

`job` says what to pick, `project` and `volume` read, `writing` is the only writer.
"""
