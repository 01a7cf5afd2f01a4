if __name__ != "bayesmeta.inference":
    raise ImportError(f"import bayesmeta.inference, not {__name__}")
