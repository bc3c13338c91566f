"""What each parameter begins with: constructors and their rules, and the numbers written as selectors."""
