"""``python -m slm_ray.proxies``: how well each proxy agrees with quality after training."""

from slm_ray.studies.proxies_command import PROXIES

if __name__ == "__main__":
    PROXIES.run()
