"""``python -m slm_ray.search``."""

from slm_ray.search.command import SEARCH

if __name__ == "__main__":
    SEARCH.run()
