"""A synthetic talking person with exact ground truth: the demo subject and the tests' fixture."""
