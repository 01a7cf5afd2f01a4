import numpyro

# ArviZ registers numpyro as a module to be loaded on first use. If a submodule of it were imported
# before that, Python would load the submodule twice, and the two copies disagree.
_ = numpyro.__version__

if __name__ != "bayesmeta.models":
    raise ImportError(f"import bayesmeta.models, not {__name__}")
