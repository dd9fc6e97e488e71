from gen_core.harness.plain import Plain


class Raw(Plain):
    """The rows themselves."""

    def embed(self, data):
        return data.x
