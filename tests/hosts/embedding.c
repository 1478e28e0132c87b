/* A program that embeds Python. It runs the file that $PROGRAM names, whatever its own arguments are. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdio.h>
#include <string.h>

/* Note this start of the program; return whether there have been too many. */
static int starts_again_and_again(void) {
    FILE *starts = fopen("starts", "a");
    long size;
    fputs("started\n", starts);
    size = ftell(starts);
    fclose(starts);
    return size > 6 * (long)strlen("started\n");
}

static void check(PyStatus status) {
    if (PyStatus_Exception(status)) Py_ExitStatusException(status);
}

int main(int argc, char **argv) {
    PyConfig config;
    FILE *program;
    (void)argc;
    if (starts_again_and_again()) return 7;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;
    check(PyConfig_SetBytesString(&config, &config.program_name, argv[0]));
    if (getenv("EXECUTABLE") != NULL)
        check(PyConfig_SetBytesString(&config, &config.executable, getenv("EXECUTABLE")));
    check(Py_InitializeFromConfig(&config));
    PyConfig_Clear(&config);
    program = fopen(getenv("PROGRAM"), "r");
    if (PyRun_SimpleFileEx(program, getenv("PROGRAM"), 1) != 0) return 1;
    return Py_FinalizeEx() != 0;
}
