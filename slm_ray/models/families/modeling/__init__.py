"""Modelling files that are copied beside students' weights; they need only torch and transformers."""

# Before any of these files is begun, so that slm_ray's registration, which waits for transformers, never finds one of
# them half imported.
import transformers  # noqa: F401
