/* The statistics of _kernels.c as functions that Python calls with tensors, without torch's headers: what has to be
 * known of a tensor is asked of it by the names that Python knows. Asked from here it costs a third of what the
 * interpreter takes, and less than that between the steps of a job, which leave nothing in the processor's caches.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_kernels.h"

#define ON_STACK 64
#define SHORT 65536 /* entries that are read so soon that letting another Python thread in would take longer */
#define TYPES 4

static PyObject *plain_types[2], *strided, *dtypes[TYPES], *is_wrapped; /* given once, by set_up */
static parallel_t parallel;
static PyObject *is_cpu, *layout, *dtype, *is_contiguous, *is_neg, *data_ptr, *numel;

static int attribute_is(PyObject *of, PyObject *name, PyObject *wanted) {
    PyObject *value = PyObject_GetAttr(of, name);
    if (!value) return -1;
    Py_DECREF(value); /* all that are compared with live on: singletons, and what set_up holds */
    return value == wanted;
}

static int answer_is(PyObject *answer, PyObject *wanted) {
    if (!answer) return -1;
    Py_DECREF(answer);
    return answer == wanted;
}

static int number(PyObject *answer, int64_t *into) {
    if (!answer) return -1;
    *into = (int64_t)PyLong_AsUnsignedLongLong(answer);
    Py_DECREF(answer);
    return PyErr_Occurred() ? -1 : 1;
}

/* The number of the tensor's dtype if its entries can be read where they lie, or -1; -2 with an exception set. */
static int readable_type(PyObject *tensor) {
    PyObject *type = (PyObject *)Py_TYPE(tensor);
    if (type != plain_types[0] && type != plain_types[1]) return -1;
    int is;
    if ((is = attribute_is(tensor, is_cpu, Py_True)) <= 0) return is - 1;
    if ((is = attribute_is(tensor, layout, strided)) <= 0) return is - 1;
    if ((is = answer_is(PyObject_CallMethodNoArgs(tensor, is_contiguous), Py_True)) <= 0) return is - 1;
    if ((is = answer_is(PyObject_CallMethodNoArgs(tensor, is_neg), Py_False)) <= 0) return is - 1;
    if ((is = answer_is(PyObject_CallOneArg(is_wrapped, tensor), Py_False)) <= 0) return is - 1;
    PyObject *found = PyObject_GetAttr(tensor, dtype);
    if (!found) return -2;
    Py_DECREF(found);
    for (int code = 0; code < TYPES; code++)
        if (found == dtypes[code]) return code;
    return -1;
}

/* 1: described; 0: it cannot be read where it lies; -1: an exception is set. */
static int describe(PyObject *tensor, tensor_t *into) {
    int code = readable_type(tensor);
    if (code < 0) return code + 1;
    into->type = code;
    if (number(PyObject_CallMethodNoArgs(tensor, data_ptr), &into->address) < 0) return -1;
    if (number(PyObject_CallMethodNoArgs(tensor, numel), &into->numel) < 0) return -1;
    return into->address || !into->numel;
}

static int describe_all(PyObject *tensors, tensor_t *described, Py_ssize_t *count, PyObject **left) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(tensors); i++) {
        int readable = describe(PySequence_Fast_GET_ITEM(tensors, i), described + *count);
        if (readable < 0) return -1;
        *count += readable;
        if (readable) continue;
        if (!*left && !(*left = PyList_New(0))) return -1;
        PyObject *index = PyLong_FromSsize_t(i);
        if (!index || PyList_Append(*left, index) < 0) {
            Py_XDECREF(index);
            return -1;
        }
        Py_DECREF(index);
    }
    return 0;
}

static int measure_described(const tensor_t *described, Py_ssize_t count, double *rows) {
    int64_t entries = 0;
    for (Py_ssize_t i = 0; i < count; i++) entries += described[i].numel;
    if (entries < SHORT && count < 4 * ON_STACK) return stepwatch_measure(count, described, rows, parallel);
    int broken;
    Py_BEGIN_ALLOW_THREADS
    broken = stepwatch_measure(count, described, rows, parallel);
    Py_END_ALLOW_THREADS
    return broken;
}

static PyObject *measure(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2) return PyErr_Format(PyExc_TypeError, "measure takes tensors and an address");
    double *rows = PyLong_AsVoidPtr(args[1]);
    if (PyErr_Occurred()) return NULL;
    PyObject *tensors = PySequence_Fast(args[0], "expected tensors"), *left = NULL, *result = NULL;
    if (!tensors) return NULL;
    tensor_t on_stack[ON_STACK], *described = on_stack;
    Py_ssize_t size = PySequence_Fast_GET_SIZE(tensors), count = 0;
    if (size > ON_STACK) described = PyMem_New(tensor_t, size);
    if (!described) PyErr_NoMemory();
    else if (describe_all(tensors, described, &count, &left) == 0) {
        int broken = count ? measure_described(described, count, rows) : 0;
        if (broken < 0) PyErr_NoMemory();
        else result = Py_BuildValue("iO", broken, left ? left : Py_None);
    }
    if (described != on_stack) PyMem_Free(described);
    Py_XDECREF(left);
    Py_DECREF(tensors);
    return result;
}

static PyObject *silent_units(PyObject *module, PyObject *args) {
    PyObject *output;
    Py_ssize_t units, inner;
    Py_buffer silent_for, windows;
    if (!PyArg_ParseTuple(args, "Onnw*y*", &output, &units, &inner, &silent_for, &windows)) return NULL;
    tensor_t described;
    PyObject *result = NULL;
    int64_t reached[3];
    int readable = describe(output, &described), failed = 0;
    if (readable == 0) result = Py_NewRef(Py_None);
    else if (readable > 0 && (units < 1 || inner < 1 || silent_for.len != units * 4 || windows.len != 8))
        PyErr_SetString(PyExc_ValueError, "silent_units: sizes that do not fit each other");
    else if (readable > 0) {
        int64_t outer = described.numel / (units * inner);
        PyThreadState *let = described.numel < SHORT ? NULL : PyEval_SaveThread();
        failed = stepwatch_silent_units(described.address, described.type, outer, units, inner, silent_for.buf,
                                        windows.buf, reached);
        if (let) PyEval_RestoreThread(let);
        if (failed) PyErr_NoMemory();
        else
            result = Py_BuildValue("LLL", (long long)reached[0], (long long)reached[1], (long long)reached[2]);
    }
    PyBuffer_Release(&silent_for);
    PyBuffer_Release(&windows);
    return result;
}

static PyObject *class_counts(PyObject *module, PyObject *args) {
    PyObject *logits;
    long long labels, rows, classes, ignored;
    Py_buffer counts;
    if (!PyArg_ParseTuple(args, "OLLLLw*", &logits, &labels, &rows, &classes, &ignored, &counts)) return NULL;
    tensor_t described;
    PyObject *result = NULL;
    int readable = describe(logits, &described);
    if (readable >= 0 && readable) readable = described.type == FLOAT32 || described.type == FLOAT64;
    if (readable > 0 && (counts.len != 16 * classes || described.numel != rows * classes))
        PyErr_SetString(PyExc_ValueError, "class_counts: sizes that do not fit each other");
    else if (readable >= 0) {
        if (readable) {
            PyThreadState *let = described.numel < SHORT ? NULL : PyEval_SaveThread();
            stepwatch_class_counts(described.address, described.type, rows, classes, ignored,
                                   (const int64_t *)(intptr_t)labels, counts.buf);
            if (let) PyEval_RestoreThread(let);
        }
        result = PyBool_FromLong(readable);
    }
    PyBuffer_Release(&counts);
    return result;
}

static PyObject *set_up(PyObject *module, PyObject *args) {
    PyObject *given[8];
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "(OO)O(OOOO)OK", &given[0], &given[1], &given[2], &given[3], &given[4], &given[5],
                          &given[6], &given[7], &address))
        return NULL;
    PyObject **held[8] = {&plain_types[0], &plain_types[1], &strided, &dtypes[0], &dtypes[1], &dtypes[2], &dtypes[3],
                          &is_wrapped};
    for (int i = 0; i < 8; i++) Py_XSETREF(*held[i], Py_NewRef(given[i]));
    parallel = (parallel_t)(uintptr_t)address;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"set_up", set_up, METH_VARARGS, NULL},
    {"measure", (PyCFunction)(void (*)(void))measure, METH_FASTCALL, NULL},
    {"silent_units", silent_units, METH_VARARGS, NULL},
    {"class_counts", class_counts, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void) {
    is_cpu = PyUnicode_InternFromString("is_cpu");
    layout = PyUnicode_InternFromString("layout");
    dtype = PyUnicode_InternFromString("dtype");
    is_contiguous = PyUnicode_InternFromString("is_contiguous");
    is_neg = PyUnicode_InternFromString("is_neg");
    data_ptr = PyUnicode_InternFromString("data_ptr");
    numel = PyUnicode_InternFromString("numel");
    if (PyErr_Occurred()) return NULL;
    return PyModule_Create(&definition);
}
