/* one_thread.c: holds the list one_thread of tests/CMakeLists.txt true: a program of it that starts a thread
 * ends there, for the thread sanitizer is not shown it. Source: ld(1), --wrap=pthread_create.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg) {
    (void)thread, (void)attr, (void)run, (void)arg;
    fprintf(stderr,
            "this program starts a thread: take it off the list one_thread of tests/CMakeLists.txt\n");
    exit(1);
}
