"""A synthetic talking person with exactly known truth: the demo subject and the tests' fixture."""
