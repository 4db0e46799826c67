/* Stands in for libnvidia-ml.so.1 where there is no device: the part of NVML's C interface that the sampler uses.
 *
 * NVML_STANDIN names a text file with a line "DEVICE FIELD VALUE" per field, read again at every call, so that a
 * test can change it. A field without a line is one that the device does not support; a VALUE "!N" makes the call
 * return NVML's error N. Devices are numbered from 0; instance J of a device I with "I mig COUNT" is device
 * 100 * (I + 1) + J. Without the variable there are 8 devices whose fields follow the clock of the sampler's load. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10 };

static unsigned calls;

static int look_up(long device, const char *field, unsigned long long *value) {
    const char *path = getenv("NVML_STANDIN");
    if (!path) {
        unsigned noise = (++calls * 2654435761u) >> 16;
        if (!strcmp(field, "mig") || !strcmp(field, "xid")) return NOT_SUPPORTED;
        if (!strcmp(field, "utilization")) *value = 85 + noise % 15;
        else if (!strcmp(field, "memory_used")) *value = (60ull << 30) + ((noise % 64ull) << 20);
        else if (!strcmp(field, "memory_total")) *value = 80ull << 30;
        else if (!strcmp(field, "power")) *value = 600000 + noise % 60000;
        else if (!strcmp(field, "clock1")) *value = 1755 + 15 * (noise % 8);
        else if (!strcmp(field, "temperature")) *value = 60 + noise % 5;
        else *value = 0;
        return SUCCESS;
    }
    FILE *file = fopen(path, "r");
    if (!file) return NOT_FOUND;
    char name[64], text[64];
    long number;
    int result = NOT_SUPPORTED;
    while (fscanf(file, "%ld %63s %63s", &number, name, text) == 3) {
        if (number != device || strcmp(name, field)) continue;
        if (text[0] == '!') {
            result = atoi(text + 1);
        } else {
            *value = strtoull(text, NULL, 0);
            result = SUCCESS;
        }
    }
    fclose(file);
    return result;
}

static int number(void *handle, const char *field, unsigned *out) {
    unsigned long long value = 0;
    int result = look_up((long)handle - 1, field, &value);
    *out = (unsigned)value;
    return result;
}

const char *nvmlErrorString(int code) { return code == NOT_SUPPORTED ? "Not Supported" : "Error of the stand-in"; }
int nvmlInitWithFlags(unsigned flags) { return (void)flags, SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    unsigned long long value = 0;
    for (*count = 0; *count < 8 && look_up(*count, "memory_total", &value) == SUCCESS; ++*count) {}
    return SUCCESS;
}

/* A handle is the device's number plus one: it must not be NULL. */
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)((long)index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    long device = (long)handle - 1;
    snprintf(uuid, length, "%s-%08ld-aaaa-bbbb-cccc-0123456789ab", device < 100 ? "GPU" : "MIG", device);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    unsigned count = 0;
    int result = number(handle, "mig", &count);
    *current = *pending = count > 0;
    return result;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { return *count = 7, (void)handle, SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) {
    unsigned count = 0;
    if (number(handle, "mig", &count) != SUCCESS || index >= count) return NOT_FOUND;
    *instance = (void *)(100 * (long)handle + index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned rates[2]) {
    int result = number(handle, "utilization", &rates[0]);
    if (result == SUCCESS && number(handle, "memory_utilization", &rates[1]) != SUCCESS) rates[1] = 0;
    return result;
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long memory[3]) { /* total, free, used */
    int result = look_up((long)handle - 1, "memory_total", &memory[0]);
    if (result == SUCCESS) result = look_up((long)handle - 1, "memory_used", &memory[2]);
    memory[1] = memory[0] - memory[2];
    return result;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) { return number(handle, "power", milliwatts); }
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *milliwatts) {
    return number(handle, "power_limit", milliwatts);
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
    return (void)sensor, number(handle, "temperature", celsius);
}
int nvmlDeviceGetClockInfo(void *handle, int kind, unsigned *megahertz) {
    char field[16];
    snprintf(field, sizeof field, "clock%d", kind);
    return number(handle, field, megahertz);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    return look_up((long)handle - 1, "throttle", reasons);
}
int nvmlDeviceGetPcieThroughput(void *handle, int counter, unsigned *kilobytes) {
    return number(handle, counter ? "pcie_rx" : "pcie_tx", kilobytes);
}

int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *count) {
    return (void)counter, look_up((long)handle - 1, kind ? "ecc_uncorrected" : "ecc_corrected", count);
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    *corrected = *uncorrected = *failed = 0;
    return number(handle, "remapped_pending", pending);
}

struct process {
    unsigned pid;
    unsigned long long memory;
    unsigned instance, compute;
};

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *processes) {
    unsigned pid = 0;
    int result = number(handle, "pid", &pid);
    unsigned room = *count;
    if (result != SUCCESS) return result;
    *count = 1;
    if (room < 1) return INSUFFICIENT_SIZE;
    processes[0] = (struct process){.pid = pid, .instance = ~0u, .compute = ~0u};
    return look_up((long)handle - 1, "pid_memory", &processes[0].memory);
}

struct field_value {
    unsigned field, scope;
    long long timestamp, latency;
    int type, result;
    unsigned long long value;
};

int nvmlDeviceGetFieldValues(void *handle, int count, struct field_value *values) {
    for (int i = 0; i < count; ++i) {
        char field[16];
        snprintf(field, sizeof field, "field%u", values[i].field);
        values[i].result = look_up((long)handle - 1, field, &values[i].value);
    }
    return SUCCESS;
}

static unsigned long long told[8];

int nvmlEventSetCreate(void **set) { return *set = told, SUCCESS; }
int nvmlDeviceRegisterEvents(void *handle, unsigned long long types, void *set) {
    return (void)handle, (void)types, (void)set, SUCCESS;
}

struct event {
    void *device;
    unsigned long long type, data;
    unsigned instance, compute;
};

/* Each value of "xid" is told once. */
int nvmlEventSetWait_v2(void *set, struct event *event, unsigned milliseconds) {
    (void)set, (void)milliseconds;
    for (long device = 0; device < 8; ++device) {
        unsigned long long code = 0;
        if (look_up(device, "xid", &code) == SUCCESS && code != told[device]) {
            told[device] = code;
            *event = (struct event){.device = (void *)(device + 1), .type = 8, .data = code};
            return SUCCESS;
        }
    }
    return TIMEOUT;
}
