"""``mtl-cloud bootstrap``: the AWS stack of a region, deployed from ``infra/mtl-cloud.yaml``."""
