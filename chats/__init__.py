"""CHATS in pure torch: the method's equations and what makes two files a pair (Fu et al., ICML 2025, arXiv
2502.12579)."""
