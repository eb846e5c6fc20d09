/* Makes the runtime a Python extension module, so that installers know where to put it. The module
 * is empty: Python calls the functions of planish.h through ctypes. */
#include <Python.h>

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "The C runtime of Planish; see planish.native.", 0,
    NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
