"""Problems with a known answer, to test estimators on."""
