"""What a benchmark's data are, where they come from and under which licence, and how they are fetched.

One manifest a benchmark, `manifests/NAME.toml`, states it as data; `manifest` reads and checks them, `listing`
turns a part into files, `fetching` fetches these, and `links` asks whether their addresses still answer.
"""
