if __name__ != "bayesmeta.models":
    raise ImportError(f"import bayesmeta.models, not {__name__}")
